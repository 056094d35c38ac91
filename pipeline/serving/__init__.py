"""`alpro serve`: a page and a JSON API to search videos, ask about them and name what they show."""
