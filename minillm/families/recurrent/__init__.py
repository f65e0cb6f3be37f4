"""What families with recurrent layers read in the same way."""
