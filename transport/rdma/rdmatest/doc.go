// Package rdmatest runs the tests of RDMA in a VM with soft-RoCE (rdma_rxe): those
// of transport/rdma and faultd that are behind the tag rdmavm.
package rdmatest
