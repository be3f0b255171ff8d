"""Study of Poisson imaging: a regularizer that is learned through the critical point, and by other gradients."""
