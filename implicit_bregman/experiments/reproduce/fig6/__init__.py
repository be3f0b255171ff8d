"""Figure 6: accuracy against the learning rate, and how much each of 50 layers still moves its input."""
