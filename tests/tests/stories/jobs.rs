//! What happens to jobs when the controller, the API server or a node goes away.
