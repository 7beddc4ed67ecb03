"""What leaves for the Hub: complete repositories, their cards, the upload."""
