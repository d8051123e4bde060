package apiserver

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var at = time.Date(2026, 11, 22, 1, 51, 37, 0, time.UTC)

func TestANodeIsRead(t *testing.T) {
	const ready = `{"type":"MemoryPressure","status":"False","lastHeartbeatTime":"2026-11-22T01:00:00Z"},{"type":"Ready","status":"True","lastHeartbeatTime":"2026-11-22T01:51:37Z"}`
	field := func(manager, fields string) string {
		return `{"manager":"` + manager + `","operation":"Update","time":"2026-11-22T01:51:37Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{` + fields + `}}}`
	}
	const ours, kubectl = `"f:unschedulable":{}`, `"f:unschedulable":{}`
	for _, tt := range []struct {
		name, spec, metadata, status string
		want                         Node
	}{
		{name: "a plain one", want: Node{}},
		{
			name: "ready", status: `"conditions":[` + ready + `],"nodeInfo":{"kubeletVersion":"v1.34.4","bootID":"b"}`,
			want: Node{Ready: true, Heartbeat: at, KubeletVersion: "v1.34.4", BootID: "b"},
		},
		{name: "unknown", status: `"conditions":[` + strings.ReplaceAll(ready, "True", "Unknown") + `]`, want: Node{Heartbeat: at}},
		{
			name: "a control plane", metadata: `"labels":{"node-role.kubernetes.io/control-plane":""}`,
			want: Node{ControlPlane: true, Labels: map[string]string{"node-role.kubernetes.io/control-plane": ""}},
		},
		{
			name: "an old control plane", metadata: `"labels":{"node-role.kubernetes.io/master":""}`,
			want: Node{ControlPlane: true, Labels: map[string]string{"node-role.kubernetes.io/master": ""}},
		},
		{
			name: "a worker", metadata: `"labels":{"node-role.kubernetes.io/worker":"","x/master":""}`,
			want: Node{Labels: map[string]string{"node-role.kubernetes.io/worker": "", "x/master": ""}},
		},
		{
			name: "cordoned by us", spec: `"unschedulable":true`,
			metadata: `"annotations":{"k":"m"},"managedFields":[` + field("kubelet", `"f:podCIDR":{}`) + "," + field("nodelocaldns", ours) + `]`,
			want:     Node{Unschedulable: true, CordonedBy: Manager, CordonedAt: at, Annotations: map[string]string{"k": "m"}},
		},
		{
			name: "cordoned by an administrator", spec: `"unschedulable":true`, metadata: `"managedFields":[` + field("kubectl", kubectl) + `]`,
			want: Node{Unschedulable: true, CordonedBy: "kubectl", CordonedAt: at},
		},
		{
			name: "cordoned by two", spec: `"unschedulable":true`,
			metadata: `"managedFields":[` + field("nodelocaldns", ours) + "," + field("argocd", kubectl) + "," + field("nodelocaldns", ours) + `]`,
			want:     Node{Unschedulable: true, CordonedBy: "argocd", CordonedAt: at},
		},
		{name: "cordoned by nobody knows whom", spec: `"unschedulable":true`, want: Node{Unschedulable: true}},
		{name: "uncordoned by an administrator", spec: `"unschedulable":false`, metadata: `"managedFields":[` + field("kubectl", kubectl) + `]`, want: Node{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			metadata := `"name":"n1","uid":"u","resourceVersion":"7"`
			if tt.metadata != "" {
				metadata += "," + tt.metadata
			}
			f := serve(t, say(200, `{"kind":"Node","apiVersion":"v1","metadata":{`+metadata+`},"spec":{`+tt.spec+`},"status":{`+tt.status+`}}`))
			got, err := f.open(t).Node(t.Context(), "n1")
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Name, tt.want.UID, tt.want.ResourceVersion = "n1", "u", "7"
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if asked := f.requests(); asked != "GET /api/v1/nodes/n1" {
				t.Errorf("asked %s", asked)
			}
		})
	}
}

func TestACordonAndItsMarkAreOneRequest(t *testing.T) {
	f := serve(t, say(200, strings.Replace(nodeN1, "7", "8", 1)))
	c := f.open(t)
	n := Node{Name: "n1", UID: "u", ResourceVersion: "7"}
	const key = "nodelocaldns.io/cordoned-by"
	for _, tt := range []struct {
		name string
		do   func() (Node, error)
		want string
	}{
		{"cordon", func() (Node, error) { return c.Cordon(t.Context(), n, key, "us") },
			`{"metadata":{"annotations":{"nodelocaldns.io/cordoned-by":"us"},"resourceVersion":"7"},"spec":{"unschedulable":true}}`},
		{"uncordon", func() (Node, error) { return c.Uncordon(t.Context(), n, key) },
			`{"metadata":{"annotations":{"nodelocaldns.io/cordoned-by":null},"resourceVersion":"7"},"spec":{"unschedulable":null}}`},
		{"unmark", func() (Node, error) { return c.Unmark(t.Context(), n, key) },
			`{"metadata":{"annotations":{"nodelocaldns.io/cordoned-by":null},"resourceVersion":"7"}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.do()
			if err != nil || got.ResourceVersion != "8" {
				t.Errorf("%+v, %v", got, err)
			}
			if asked, want := f.requests(), "PATCH /api/v1/nodes/n1?fieldManager=nodelocaldns "+tt.want; asked != want {
				t.Errorf("asked %s\nwant  %s", asked, want)
			}
		})
	}
}

// As an API server sends it, shortened.
const podList = `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"4711"},"items":[
{"metadata":{"name":"web-0","namespace":"shop","uid":"a","labels":{"app":"web"},
  "ownerReferences":[{"kind":"X","name":"x"},{"kind":"ReplicaSet","name":"web-6f","controller":true}]},
 "spec":{"nodeName":"n1","priority":1000,"terminationGracePeriodSeconds":30,"nodeSelector":{"disk":"ssd"},
  "affinity":{"nodeAffinity":{
   "preferredDuringSchedulingIgnoredDuringExecution":[{"weight":1,"preference":{"matchExpressions":[{"key":"no","operator":"Exists"}]}}],
   "requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[
    {"matchExpressions":[{"key":"zone","operator":"In","values":["a","b"]},{"key":"gpu","operator":"DoesNotExist"}]},
    {"matchFields":[{"key":"metadata.name","operator":"In","values":["n1"]}]}]}}},
  "volumes":[{"name":"c","configMap":{}},{"name":"e","emptyDir":{}}],
  "containers":[{"name":"c","env":[{"name":"X","value":"]}"}],"resources":{"limits":{"cpu":"1","nvidia.com/gpu":"1","hugepages-2Mi":"2Mi","a.kubernetes.io/x":"1","x.org/none":"0"}}}],
  "initContainers":[{"name":"i","resources":{"limits":{"amd.com/gpu":"2","nvidia.com/gpu":"1"}}}]},
 "status":{"phase":"Running","conditions":[{"type":"PodScheduled","status":"True"},{"type":"Ready","status":"True","lastProbeTime":null}]}},
{"metadata":{"name":"going","namespace":"shop","uid":"b","deletionTimestamp":"2026-11-22T01:51:37Z","deletionGracePeriodSeconds":5},
 "spec":{"nodeName":"n1","terminationGracePeriodSeconds":30,"volumes":[{"name":"c","secret":{}}],"dnsConfig":{"nameservers":["10.96.0.10"]}},
 "status":{"phase":"Running","conditions":[{"type":"Ready","status":"False"}]}},
{"metadata":{"name":"etcd-n1","namespace":"kube-system","uid":"c","annotations":{"kubernetes.io/config.hash":"h","kubernetes.io/config.mirror":"h"},
  "ownerReferences":[{"kind":"Node","name":"n1","controller":true}]},"spec":{"nodeName":"n1"},"status":{"phase":"Running"}},
{"metadata":{"name":"job","namespace":"shop","uid":"d"},"spec":{"nodeName":"n1"},"status":{"phase":"Succeeded"}},
{"metadata":{"name":"crashed","namespace":"shop","uid":"e"},"spec":{"nodeName":"n1"},"status":{"phase":"Failed"}}
]}`

func TestPodsAreRead(t *testing.T) {
	f := serve(t, say(200, podList))
	c := f.open(t)
	want := []Pod{
		{
			Namespace: "shop", Name: "web-0", UID: "a", Node: "n1", Labels: map[string]string{"app": "web"}, Owner: Owner{"ReplicaSet", "web-6f"},
			Ready: true, Grace: 30 * time.Second, Priority: 1000, EmptyDir: true, ExtendedResources: []string{"amd.com/gpu", "nvidia.com/gpu"},
			NodeSelector: NodeSelector{
				Labels: map[string]string{"disk": "ssd"},
				Terms: []Term{
					{Expressions: []Requirement{{"zone", "In", []string{"a", "b"}}, {"gpu", "DoesNotExist", nil}}},
					{Fields: []Requirement{{"metadata.name", "In", []string{"n1"}}}},
				},
			},
		},
		{Namespace: "shop", Name: "going", UID: "b", Node: "n1", Terminating: true, Grace: 5 * time.Second, Nameservers: []string{"10.96.0.10"}},
		{Namespace: "kube-system", Name: "etcd-n1", UID: "c", Node: "n1", ConfigHash: "h", Mirror: true, Owner: Owner{"Node", "n1"}},
		{Namespace: "shop", Name: "job", UID: "d", Node: "n1", Finished: true},
		{Namespace: "shop", Name: "crashed", UID: "e", Node: "n1", Finished: true},
	}
	got, err := c.Pods(t.Context(), "n1", "app in (web,db)")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if asked := f.requests(); asked != "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1&labelSelector=app+in+%28web%2Cdb%29" {
		t.Errorf("asked %s", asked)
	}
	got, err = c.RecentPods(t.Context(), "n1")
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if asked := f.requests(); asked != "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn1&resourceVersion=0" {
		t.Errorf("asked %s", asked)
	}
	if s := want[0].String(); s != "shop/web-0" {
		t.Errorf("it is called %s", s)
	}
}

func TestAListOfPodsIsWholeOrAnError(t *testing.T) {
	for _, tt := range []struct{ name, body, error string }{
		{name: "none", body: `{"kind":"PodList","items":[]}`},
		{name: "null", body: `{"items":null,"kind":"PodList"}`},
		{name: "something else", body: `{"kind":"NodeList","items":[]}`, error: `its kind is "NodeList", not PodList`},
		{name: "nothing", body: `{}`, error: `its kind is "", not PodList`},
		{name: "not even that", body: `null`, error: "EOF"},
		{name: "half a list", body: podList[:len(podList)-10], error: "unexpected EOF"},
		{name: "a list without an end", body: `{"kind":"PodList","items":[]`, error: "EOF"},
		{name: "a pod that is none", body: `{"kind":"PodList","items":[{"metadata":7}]}`, error: "json: cannot unmarshal number into Go struct field pod.metadata of type struct"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, say(200, tt.body))
			c := f.open(t)
			got, err := c.Pods(t.Context(), "n1", "")
			if len(got) != 0 {
				t.Errorf("got %v", got)
			}
			said, _ := strings.CutPrefix(f.text(err, c), "asking HOST for the pods of node n1: reading the reply: ")
			if !strings.HasPrefix(said, tt.error) || (tt.error == "") != (said == "") {
				t.Errorf("error %q, want %q", said, tt.error)
			}
		})
	}
}

func TestAnEvictionIsDoneOrSaysWhyNot(t *testing.T) {
	status := func(code int, reason, details string) http.HandlerFunc {
		return say(code, `{"kind":"Status","status":"Failure","message":"told so","reason":"`+reason+`","details":{`+details+`}}`)
	}
	cause := func(reason, message string) string {
		return `"name":"p","causes":[{"reason":"` + reason + `","message":"` + message + `"}]`
	}
	wait := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "10")
		status(429, "TooManyRequests", cause("DisruptionBudget", "The disruption budget web is still being processed by the server."))(w, r)
	}
	here := say(200, `{"kind":"PodList","items":[{"metadata":{"namespace":"shop","name":"p","uid":"u"}}]}`)
	another := say(200, `{"kind":"PodList","items":[{"metadata":{"namespace":"shop","name":"p","uid":"v"}}]}`)
	none := say(200, `{"kind":"PodList","items":[]}`)
	for _, tt := range []struct {
		name              string
		eviction, list    http.HandlerFunc // list nil: it is not asked for
		kind, error, hint string
	}{
		{name: "done", eviction: say(201, `{"kind":"Status","status":"Success"}`)},
		{
			name: "its budget is spent", eviction: status(429, "TooManyRequests", cause("DisruptionBudget", "The disruption budget web needs 2 healthy pods and has 2 currently")),
			kind: "blocked [web] The disruption budget web needs 2 healthy pods and has 2 currently 0s", error: "The disruption budget web needs 2 healthy pods and has 2 currently",
		},
		{
			name: "its budget is new", eviction: wait,
			kind: "blocked [web] The disruption budget web is still being processed by the server. 10s", error: "The disruption budget web is still being processed by the server.",
		},
		{
			name: "a budget in other words", eviction: status(429, "TooManyRequests", cause("DisruptionBudget", "web says no")),
			kind: "blocked [] web says no 0s", error: "web says no",
		},
		{name: "the server is busy", eviction: status(429, "TooManyRequests", ""), kind: "busy 0s", error: "429 Too Many Requests: told so"},
		{name: "not there", eviction: status(404, "NotFound", `"name":"p"`), kind: "not found, gone", error: "404 Not Found: told so"},
		{name: "a server without evictions", eviction: status(404, "NotFound", ""), kind: "not found", error: "404 Not Found: told so"},
		{name: "another of its name", eviction: status(409, "Conflict", `"name":"p"`), list: another, kind: "gone", error: "409 Conflict: told so"},
		{name: "changed at the same moment", eviction: status(409, "Conflict", `"name":"p"`), list: here, kind: "conflict", error: "409 Conflict: told so"},
		{name: "on another node by now", eviction: status(403, "Forbidden", `"name":"p"`), list: none, kind: "gone", error: "403 Forbidden: told so"},
		{name: "not allowed", eviction: status(403, "Forbidden", `"name":"p"`), list: here, kind: "forbidden", error: "403 Forbidden: told so", hint: "has no right to this"},
		{name: "not allowed to ask either", eviction: status(403, "Forbidden", `"name":"p"`), list: status(403, "Forbidden", ""), kind: "forbidden", error: "403 Forbidden: told so", hint: "has no right to this"},
		{name: "its namespace is being deleted", eviction: status(403, "Forbidden", cause("NamespaceTerminating", "x")), list: here, kind: "forbidden, namespace terminating", error: "403 Forbidden: told so"},
		{name: "two budgets", eviction: status(500, "", ""), error: "500 Internal Server Error: told so", hint: "leave the pod one PodDisruptionBudget, or delete it yourself"},
		{name: "etcd is away", eviction: status(500, "InternalError", ""), kind: "unreachable", error: "500 Internal Server Error: told so", hint: "is not well"},
		{name: "cut off", eviction: cut, kind: "unreachable", error: "EOF", hint: "journalctl"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					tt.eviction(w, r)
				} else {
					tt.list(w, r)
				}
			})
			c := f.open(t)
			err := c.Evict(t.Context(), Pod{Namespace: "shop", Name: "p", UID: "u", Node: "n1"}, nil)
			if got, _ := strings.CutPrefix(f.text(err, c), "asking HOST to evict pod shop/p: "); got != tt.error {
				t.Errorf("error %q, want %q", got, tt.error)
			}
			if got := kind(err); got != tt.kind {
				t.Errorf("it is %q, want %q", got, tt.kind)
			}
			if got := hint(err); (got == "") != (tt.hint == "") || !strings.Contains(got, tt.hint) {
				t.Errorf("hint %q, want one with %q", got, tt.hint)
			}
			want := `POST /api/v1/namespaces/shop/pods/p/eviction {"apiVersion":"policy/v1","deleteOptions":{"preconditions":{"uid":"u"}},"kind":"Eviction","metadata":{"name":"p","namespace":"shop"}}`
			if tt.list != nil {
				want += "\nGET /api/v1/namespaces/shop/pods?fieldSelector=metadata.name%3Dp%2Cspec.nodeName%3Dn1"
			}
			if got := f.requests(); got != want {
				t.Errorf("asked\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestAnEvictionMayHaveItsOwnGrace(t *testing.T) {
	f := serve(t, say(201, `{"kind":"Status","status":"Success"}`))
	c := f.open(t)
	for grace, want := range map[time.Duration]string{0: ":0,", time.Millisecond: ":1,", 30 * time.Second: ":30,"} {
		if err := c.Evict(t.Context(), Pod{Namespace: "shop", Name: "p", UID: "u"}, &grace); err != nil {
			t.Error(err)
		}
		if got := f.requests(); !strings.Contains(got, `"deleteOptions":{"gracePeriodSeconds"`+want) {
			t.Errorf("%s: asked %s", grace, got)
		}
	}
}

func TestLeasesAreReadAndWritten(t *testing.T) {
	const body = `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"namespace":"kube-system","name":"l","resourceVersion":"9"},` +
		`"spec":{"holderIdentity":"n1","acquireTime":"2026-11-22T01:51:37.000001Z","renewTime":"2026-11-22T01:51:37.000000Z","leaseDurationSeconds":600}}`
	l := Lease{
		Namespace: "kube-system", Name: "l", Holder: "n1",
		Acquired: at.Add(time.Microsecond), Renewed: at.In(time.FixedZone("x", 3600)), Duration: 10 * time.Minute, ResourceVersion: "9",
	}
	read := l
	read.Renewed = at
	free := Lease{Namespace: "kube-system", Name: "l", ResourceVersion: "9"}
	f := serve(t, say(200, body))
	c := f.open(t)
	const path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
	for _, tt := range []struct {
		name string
		do   func(context.Context) (Lease, error)
		want string
	}{
		{"read", func(ctx context.Context) (Lease, error) { return c.Lease(ctx, "kube-system", "l") }, "GET " + path + "/l"},
		{"create", func(ctx context.Context) (Lease, error) { return c.CreateLease(ctx, l) }, "POST " + path + " " + strings.Replace(body, `,"resourceVersion":"9"`, "", 1)},
		{"update", func(ctx context.Context) (Lease, error) { return c.UpdateLease(ctx, l) }, "PUT " + path + "/l " + body},
		{"release", func(ctx context.Context) (Lease, error) { return c.UpdateLease(ctx, free) },
			"PUT " + path + `/l {"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"namespace":"kube-system","name":"l","resourceVersion":"9"},"spec":{}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.do(t.Context())
			if diff := cmp.Diff(read, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if asked := f.requests(); asked != tt.want {
				t.Errorf("asked\n%s\nwant\n%s", asked, tt.want)
			}
		})
	}
	renewed, err := c.Renewed(t.Context(), "n1")
	if asked := f.requests(); !renewed.Equal(at) || err != nil || asked != "GET /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1" {
		t.Errorf("renewed at %s (%v), asked %s", renewed, err, asked)
	}
}

func TestAnEventIsOneOfTheNode(t *testing.T) {
	f := serve(t, say(201, `{}`))
	c := f.open(t)
	n := Node{Name: "n1", UID: "u"}
	if err := c.Event(t.Context(), n, Event{Reason: "Cordoned", Message: "for a restart of the kubelet", At: at.Add(1)}); err != nil {
		t.Error(err)
	}
	want := `POST /api/v1/namespaces/default/events {"apiVersion":"v1","count":1,"firstTimestamp":"2026-11-22T01:51:37Z",` +
		`"involvedObject":{"apiVersion":"v1","kind":"Node","name":"n1","uid":"u"},"kind":"Event","lastTimestamp":"2026-11-22T01:51:37Z",` +
		`"message":"for a restart of the kubelet","metadata":{"name":"n1.18ea3b05ab935a01","namespace":"default"},"reason":"Cordoned",` +
		`"reportingComponent":"nodelocaldns","reportingInstance":"n1","source":{"component":"nodelocaldns","host":"n1"},"type":"Normal"}`
	if asked := f.requests(); asked != want {
		t.Errorf("asked\n%s\nwant\n%s", asked, want)
	}
	if err := c.Event(t.Context(), n, Event{Warning: true, Message: strings.Repeat("x", 1023) + "ä", At: at}); err != nil {
		t.Error(err)
	}
	if asked := f.requests(); !strings.Contains(asked, `"type":"Warning"`) || !strings.Contains(asked, `"message":"`+strings.Repeat("x", 1023)+`"`) {
		t.Errorf("asked %s", asked)
	}
}

func TestWhoMayNotRecordEventsRecordsNone(t *testing.T) {
	f := serve(t, each(say(403, ""), say(500, "")))
	c := f.open(t)
	if err := c.Event(t.Context(), Node{Name: "n1"}, Event{At: at}); err != nil {
		t.Error(err)
	}
	if err := c.Event(t.Context(), Node{Name: "n1"}, Event{At: at}); kind(err) != "unreachable" {
		t.Error(err)
	}
}
