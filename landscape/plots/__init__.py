"""Pictures of results: matplotlib for paper, plotly for turning around."""
