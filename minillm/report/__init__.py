"""What commands show their results with: pictures, pages, timings, and what a running model is observed by."""
