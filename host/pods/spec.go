package pods

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A Spec is what the API server knows of the DNS settings of a pod.
type Spec struct {
	Namespace, Name string
	UID             string       // as [Pod] has it
	Nameservers     []netip.Addr // those of its own dnsConfig
}

// Explain fills into all what specs tell: names that were missing, and whether
// a pod names one of ours by its own dnsConfig. Pods that specs do not have
// stay as they are.
func Explain(all []Pod, specs []Spec, ours []netip.Addr) {
	for i := range all {
		p := &all[i]
		for _, s := range specs {
			if s.UID != p.UID {
				continue
			}
			if p.Name == "" {
				p.Namespace, p.Name = s.Namespace, s.Name
			}
			p.OwnDNS = slices.ContainsFunc(s.Nameservers, func(a netip.Addr) bool { return slices.Contains(ours, a) })
		}
	}
}

// askFor bounds Ask: a node has a few hundred pods, and the API server holds
// them in memory.
const askFor = 5 * time.Second

// Ask asks the API server, once, for the pods of a node, with the credential
// in the file kubeconfig. An empty node is the one that the credential's client
// certificate is of. It reads and never writes; its connections are closed
// before it returns.
func Ask(ctx context.Context, kubeconfig, node string) ([]Spec, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", kubeconfig, err)
	}
	if node == "" {
		if node, err = nodeOf(cfg); err != nil {
			return nil, fmt.Errorf("reading the node's name from %s: %w", kubeconfig, err)
		}
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("using %s: %w", kubeconfig, err)
	}
	defer client.CloseIdleConnections()
	at, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("using %s: %w", kubeconfig, err)
	}
	list, err := ask(ctx, client, at, node)
	if err != nil {
		return nil, fmt.Errorf("asking %s for the pods of node %s: %w", at.Host, node, err)
	}
	return list, nil
}

// nodeOf is the node whose kubelet's client certificate is in cfg.
func nodeOf(cfg *rest.Config) (string, error) {
	if err := rest.LoadTLSFiles(cfg); err != nil {
		return "", err
	}
	for text := cfg.CertData; ; {
		block, rest := pem.Decode(text)
		if block == nil {
			return "", errors.New("no client certificate of a kubelet in it")
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue // kubelets keep the key in the same file
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", err
		}
		if node, ok := strings.CutPrefix(cert.Subject.CommonName, "system:node:"); ok {
			return node, nil
		}
	}
}

// maxList bounds the reply: 500 pods of 100 KiB each, far more than a kubelet
// takes.
const maxList = 50 << 20

func ask(ctx context.Context, client *http.Client, at *url.URL, node string) ([]Spec, error) {
	u := at.JoinPath("/api/v1/pods")
	// resourceVersion 0 has the API server answer from its memory, where pods
	// are found by node; without it, it would read those of the whole cluster.
	u.RawQuery = url.Values{"fieldSelector": {"spec.nodeName=" + node}, "resourceVersion": {"0"}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxList)
	if resp.StatusCode != http.StatusOK {
		var status struct {
			Message string `json:"message"`
		}
		if json.NewDecoder(io.LimitReader(body, 1<<20)).Decode(&status) == nil && status.Message != "" {
			return nil, fmt.Errorf("%s: %s", resp.Status, status.Message)
		}
		return nil, errors.New(resp.Status)
	}
	list, err := parsePods(body)
	if err != nil {
		return nil, fmt.Errorf("reading the reply: %w", err)
	}
	return list, nil
}

// parsePods reads a list of pods, one at a time: what is kept of each is far
// less than what comes.
func parsePods(body io.Reader) ([]Spec, error) {
	d := json.NewDecoder(body)
	if _, err := d.Token(); err != nil { // {
		return nil, err
	}
	var all []Spec
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		if key != "items" {
			var other json.RawMessage
			if err := d.Decode(&other); err != nil {
				return nil, err
			}
			continue
		}
		open, err := d.Token()
		if err != nil {
			return nil, err
		}
		for open != nil && d.More() { // null where there are none
			s, err := parsePod(d)
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		if open != nil {
			if _, err := d.Token(); err != nil { // ]
				return nil, err
			}
		}
	}
	_, err := d.Token() // }
	return all, err
}

func parsePod(d *json.Decoder) (Spec, error) {
	var p struct {
		Metadata struct {
			Namespace   string `json:"namespace"`
			Name        string `json:"name"`
			UID         string `json:"uid"`
			Annotations struct {
				// The kubelet's own UID of a static pod, on its mirror object.
				Hash string `json:"kubernetes.io/config.hash"`
			} `json:"annotations"`
		} `json:"metadata"`
		Spec struct {
			DNSConfig struct {
				Nameservers []string `json:"nameservers"`
			} `json:"dnsConfig"`
		} `json:"spec"`
	}
	if err := d.Decode(&p); err != nil {
		return Spec{}, err
	}
	s := Spec{Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, UID: p.Metadata.UID}
	if p.Metadata.Annotations.Hash != "" {
		s.UID = p.Metadata.Annotations.Hash
	}
	for _, n := range p.Spec.DNSConfig.Nameservers {
		if a, err := netip.ParseAddr(n); err == nil {
			s.Nameservers = append(s.Nameservers, a.Unmap().WithZone(""))
		}
	}
	return s, nil
}
