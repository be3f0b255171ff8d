"""The study of the geometry: the same task with every Legendre function, and several of them on one box."""
