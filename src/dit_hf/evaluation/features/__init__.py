"""Features of images: the extractors, one pass over the images, and what it reads and keeps."""
