"""The study of images: the study of the depth with a convolutional layer."""
