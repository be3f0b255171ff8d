"""Test problems and what is known of them without this library's solvers: the oracle and its proofs."""
