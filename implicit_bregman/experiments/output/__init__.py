"""What every command gives: files, terminal, figures, statistics, and the report that joins them."""
