"""The towers of CLIP: image encoders and text encoders."""
