"""Result types, their schema, and the files that keep them."""
