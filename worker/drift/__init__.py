"""Whether records are still like those that a profile was made of. Pure: numbers and texts in, figures out."""
