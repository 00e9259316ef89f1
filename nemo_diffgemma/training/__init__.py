"""Training with NeMo: data, noise, the Lightning module, parallel strategies, export. Only this folder imports NeMo."""
