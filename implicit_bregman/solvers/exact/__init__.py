"""Exact critical points: by the active set, Newton's method or interior points. What is found has been tested."""
