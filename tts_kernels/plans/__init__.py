"""What is read once for which queries: plans of attention calls, and selections of pages."""
