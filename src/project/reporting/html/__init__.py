"""A run or a sweep told on one page that needs nothing else. No torch."""
