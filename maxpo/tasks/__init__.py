"""What gives reward."""
