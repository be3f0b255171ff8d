"""What a GPU would pay for, counted without one, and what it takes where there is one."""
