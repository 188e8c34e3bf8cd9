"""Documentation for people and programs: AsyncAPI, the READMEs as plain text, and pages to try both."""
