"""What one step descends: CLIP's distances of cutouts to the prompts, and penalties on the pixels."""
