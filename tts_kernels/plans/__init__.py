"""Plans of attention calls (what is read once for which queries), and selections of pages."""
