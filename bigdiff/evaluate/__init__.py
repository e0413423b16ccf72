"""What a model makes: pictures for a person and numbers for a table."""
