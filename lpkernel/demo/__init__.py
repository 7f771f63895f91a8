"""The page in the browser: `lpkernel demo`. Only `page` and `serve` need Gradio, and only when they are used."""
