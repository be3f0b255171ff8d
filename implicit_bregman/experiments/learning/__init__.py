"""Models, methods, training and gradient checks that several commands share."""
