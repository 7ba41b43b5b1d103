"""Published questions over real paragraphs."""
