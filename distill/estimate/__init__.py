"""`distill plan`: what a recipe costs on given devices, before anything is submitted."""
