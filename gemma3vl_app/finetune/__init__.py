"""Fine-tuning: recipes, their data, the training itself; and the demo model they train."""
