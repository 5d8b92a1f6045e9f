"""The built-in captures: parametric objects and rooms, rendered by ray casting."""
