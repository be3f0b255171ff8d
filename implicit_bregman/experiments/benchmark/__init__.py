"""Time to accuracy, side by side with torchdeq, ProxQP, bregmanet and plain unrolling: `implicit-bregman benchmark`."""
