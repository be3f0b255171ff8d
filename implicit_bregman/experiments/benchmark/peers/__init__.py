"""The contenders of the benchmark: this library, plain PyTorch, and other packages."""
