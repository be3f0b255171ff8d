"""Figure 4: the two spirals and what each layer of a trained Bregman network makes of them."""
