"""Collaboration graphs of several models: a distribution over them, and the search for a good one."""

from .agent import graph_agent
from .agent_reinforce import GraphAgent, GraphArchive, GraphRound, search_graphs
from .distribution import GraphDistribution
from .graph import CollaborationGraph, GraphNode
from .running import GRAPH_ROLES, run_graph
from .trials import GraphTrial, measure_graph

__all__ = [
    "GRAPH_ROLES",
    "CollaborationGraph",
    "GraphAgent",
    "GraphArchive",
    "GraphDistribution",
    "GraphNode",
    "GraphRound",
    "GraphTrial",
    "graph_agent",
    "measure_graph",
    "run_graph",
    "search_graphs",
]
