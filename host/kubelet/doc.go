// Package kubelet finds whom the pods of this node's kubelet ask, and makes
// them ask us first.
//
// Find reads the node and decides: what pods ask now, what they will ask, and by
// which file of ours. Step writes that file and takes it away again, and
// restarts nothing. Window is the one place that restarts a kubelet.
package kubelet
