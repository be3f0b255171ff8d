"""Table 2: test accuracy on images with one and three hidden layers, and behind a convolutional network."""
