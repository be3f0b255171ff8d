"""The paper's figures and its Table 2, each by one command."""
