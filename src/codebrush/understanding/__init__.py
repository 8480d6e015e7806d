"""What CLIP makes of pictures: labels, captions, answers, and why."""
