"""The study of gradient errors against inner iterations, for every way to differentiate."""
