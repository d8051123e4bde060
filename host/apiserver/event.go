package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// An Event is something that happened to a node, for people who look at it.
type Event struct {
	Warning bool      // else normal
	Reason  string    // one word in camel case, such as "Cordoned"
	Message string    // a sentence, at most 1024 bytes; more are cut off
	At      time.Time // when
}

// maxMessage is what the API server takes (NoteLengthLimit).
const maxMessage = 1024

// Event records e for n, where "kubectl describe node" shows it, for as long
// as the API server keeps Events (an hour, unless it was told otherwise). To a
// credential that may not, it does nothing.
func (c *Client) Event(ctx context.Context, n Node, e Event) error {
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	at := e.At.UTC().Format(time.RFC3339)
	message := e.Message
	if len(message) > maxMessage {
		message = strings.ToValidUTF8(message[:maxMessage], "")
	}
	// Not events.k8s.io/v1, which has no field for what kubectl prints as age.
	// Those of objects without a namespace are in this one.
	const namespace = "default"
	err := c.do(ctx, request{
		what: "to record an event of node " + n.Name, method: http.MethodPost, path: "/api/v1/namespaces/" + namespace + "/events",
		body: object{
			"apiVersion": "v1", "kind": "Event",
			"metadata": object{"namespace": namespace, "name": fmt.Sprintf("%s.%x", n.Name, e.At.UnixNano())},
			// Kubelets have the node's name as its UID here. kubectl describe
			// looks for both, kubectl events for an apiVersion, too.
			"involvedObject": object{"apiVersion": "v1", "kind": "Node", "name": n.Name, "uid": n.UID},
			"type":           kind, "reason": e.Reason, "message": message,
			"firstTimestamp": at, "lastTimestamp": at, "count": 1,
			"source":             object{"component": Manager, "host": n.Name},
			"reportingComponent": Manager, "reportingInstance": n.Name,
		},
	})
	if errors.Is(err, ErrForbidden) {
		return nil
	}
	return err
}
