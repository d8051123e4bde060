// Package kubelet finds whom the pods of this node's kubelet ask, and makes
// them ask us first.
//
// Find reads the node and decides: what pods ask now, what they will ask, and by
// which file of ours. Step writes that file and takes it away again. Nothing
// here restarts a kubelet.
package kubelet
