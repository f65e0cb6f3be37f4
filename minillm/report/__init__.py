"""What commands share to show results: pictures, pages, timings, and hooks that observe a running model."""
