"""The tab Train, and the HTML of trainings."""
