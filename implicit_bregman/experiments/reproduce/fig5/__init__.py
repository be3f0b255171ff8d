"""Figure 5: training losses of the three architectures, from random and from deterministic initial weights."""
