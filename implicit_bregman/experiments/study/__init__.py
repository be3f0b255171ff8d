"""Implicit against unrolled: five studies, each by one command."""
