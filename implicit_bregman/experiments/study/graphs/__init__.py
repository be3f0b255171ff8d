"""The study of citation graphs: the implicit layer, its unrolled twins and graph convolutions."""
