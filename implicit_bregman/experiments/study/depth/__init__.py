"""The study of the depth: one model, trained implicitly and through L unrolled steps."""
