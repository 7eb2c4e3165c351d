"""The only room with ray: session, placement, agent, gang, controller, local cluster."""
