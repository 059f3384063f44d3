// Package rdmatest runs the tests of RDMA in a VM with soft-RoCE (rdma_rxe): those
// of transport/rdma, faultd and cmd/pagewarpd that are behind the tag rdmavm, some of them
// with memory on the character device.
package rdmatest
