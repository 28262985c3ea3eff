// Command crd does with a CustomResourceDefinition and with objects what an API server does, by the API server's own
// code, without a server: is the definition valid, what do its rules cost at worst, and is an object taken?
//
//	crd DEFINITION.yaml < questions.json > answers.json
//
// A question is an object ("object") under a name; with "old" it is an update, with "status" an update of the status.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	servervalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apiextensions-apiserver/pkg/crdserverscheme"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	runtimeschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

type question struct {
	Object json.RawMessage `json:"object"`
	Old    json.RawMessage `json:"old"`
	Status bool            `json:"status"`
}

type answer struct {
	Errors []string       `json:"errors"`
	Object map[string]any `json:"object"`
	Cells  map[string]any `json:"cells"`
}

type cost struct {
	Path string `json:"path"`
	Rule string `json:"rule"`
	Cost uint64 `json:"cost"`
}

type answers struct {
	Definition []string          `json:"definition"`
	Costs      []cost            `json:"costs"`
	Answers    map[string]answer `json:"answers"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	definition, internal, err := read(os.Args[1])
	if err != nil {
		return err
	}
	var questions map[string]question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		return err
	}
	said := answers{Definition: []string{}, Costs: []cost{}, Answers: map[string]answer{}}
	for _, problem := range validation.ValidateCustomResourceDefinition(context.Background(), internal) {
		said.Definition = append(said.Definition, problem.Error())
	}
	if len(said.Definition) == 0 {
		root := definitionSchema(internal)
		if err := costs(root, validation.RootCELContext(root), nil, &said.Costs); err != nil {
			return err
		}
		server, err := newServer(definition, internal)
		if err != nil {
			return err
		}
		for name, asked := range questions {
			if said.Answers[name], err = server.ask(asked); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(said)
}

// read takes the definition as the API server does: strictly, with defaults, and in its internal form too.
func read(path string) (*v1.CustomResourceDefinition, *apiextensions.CustomResourceDefinition, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	definition := &v1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict(text, definition); err != nil {
		return nil, nil, err
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	scheme.Default(definition)
	internal := &apiextensions.CustomResourceDefinition{}
	return definition, internal, scheme.Convert(definition, internal, nil)
}

// definitionSchema is the schema of the only version; where all versions have the same, the internal form has it once.
func definitionSchema(internal *apiextensions.CustomResourceDefinition) *apiextensions.JSONSchemaProps {
	if internal.Spec.Validation != nil {
		return internal.Spec.Validation.OpenAPIV3Schema
	}
	return internal.Spec.Versions[0].Schema.OpenAPIV3Schema
}

// costs lists what each rule and each message costs at worst, for all places together where it stands.
func costs(node *apiextensions.JSONSchemaProps, at *validation.CELSchemaContext, path *field.Path, found *[]cost) error {
	if len(node.XValidations) > 0 {
		info, err := at.TypeInfo()
		if err != nil {
			return err
		}
		base := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion(), true)
		rules, err := cel.Compile(info.Schema, info.DeclType, celconfig.PerCallLimit, base, cel.NewExpressionsEnvLoader())
		if err != nil {
			return err
		}
		for number, rule := range rules {
			times := rule.MaxCardinality
			if at.MaxCardinality != nil {
				times = *at.MaxCardinality
			}
			text := node.XValidations[number].Rule
			*found = append(*found, cost{path.String(), text, rule.MaxCost*times + rule.MessageExpressionMaxCost})
		}
	}
	for name, below := range node.Properties {
		if err := costs(&below, at.ChildPropertyContext(&below, name), path.Child(name), found); err != nil {
			return err
		}
	}
	if node.Items != nil && node.Items.Schema != nil {
		below := node.Items.Schema
		if err := costs(below, at.ChildItemsContext(below), path.Key("items"), found); err != nil {
			return err
		}
	}
	if node.AdditionalProperties != nil && node.AdditionalProperties.Schema != nil {
		below := node.AdditionalProperties.Schema
		return costs(below, at.ChildAdditionalPropertiesContext(below), path.Key("values"), found)
	}
	return nil
}

// strategy is what the registry of the API server asks of a kind of objects.
type strategy interface {
	PrepareForCreate(ctx context.Context, obj runtime.Object)
	Validate(ctx context.Context, obj runtime.Object) field.ErrorList
	PrepareForUpdate(ctx context.Context, obj, old runtime.Object)
	ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList
}

type updates interface {
	PrepareForUpdate(ctx context.Context, obj, old runtime.Object)
	ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList
}

type server struct {
	structural *schema.Structural
	columns    []v1.CustomResourceColumnDefinition
	objects    strategy
	status     updates
}

func newServer(definition *v1.CustomResourceDefinition, internal *apiextensions.CustomResourceDefinition) (*server, error) {
	root, version := definitionSchema(internal), definition.Spec.Versions[0]
	structural, err := schema.NewStructural(root)
	if err != nil {
		return nil, err
	}
	if err := defaulting.PruneDefaults(structural); err != nil {
		return nil, err
	}
	objects, _, err := servervalidation.NewSchemaValidator(root)
	if err != nil {
		return nil, err
	}
	statusSchema := root.Properties["status"]
	status, _, err := servervalidation.NewSchemaValidator(&statusSchema)
	if err != nil {
		return nil, err
	}
	scale := &apiextensions.CustomResourceSubresourceScale{}
	if err := v1.Convert_v1_CustomResourceSubresourceScale_To_apiextensions_CustomResourceSubresourceScale(
		version.Subresources.Scale, scale, nil); err != nil {
		return nil, err
	}
	kind := runtimeschema.GroupVersionKind{
		Group: definition.Spec.Group, Version: version.Name, Kind: definition.Spec.Names.Kind,
	}
	made := customresource.NewStrategy(crdserverscheme.NewUnstructuredObjectTyper(), true, kind, objects, status,
		structural, &apiextensions.CustomResourceSubresourceStatus{}, scale, version.SelectableFields)
	return &server{structural, version.AdditionalPrinterColumns, made, customresource.NewStatusStrategy(made)}, nil
}

// decode reads an object as the API server does when it is asked to be strict, as kubectl asks it: what it does not
// know is an error, nulls are nothing, and defaults are filled in.
func (s *server) decode(text json.RawMessage) (*unstructured.Unstructured, []string, error) {
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(text); err != nil {
		return nil, nil, err
	}
	if object.GetNamespace() == "" {
		object.SetNamespace("default") // by the request's path
	}
	defaulting.Default(object.Object, s.structural)
	_, _, unknown, err := objectmeta.GetObjectMetaWithOptions(object.Object,
		objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: true})
	if err != nil {
		return nil, nil, err
	}
	unknown = append(unknown, pruning.PruneWithOptions(object.Object, s.structural, true,
		schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})...)
	defaulting.PruneNonNullableNullsWithoutDefaults(object.Object, s.structural)
	errors := []string{}
	for _, path := range unknown {
		errors = append(errors, fmt.Sprintf("unknown field %q", path))
	}
	return object, errors, nil
}

func (s *server) ask(asked question) (answer, error) {
	object, errors, err := s.decode(asked.Object)
	if err != nil {
		return answer{Errors: []string{err.Error()}}, nil
	}
	if len(errors) > 0 {
		return answer{Errors: errors}, nil
	}
	ctx := context.Background()
	var problems field.ErrorList
	if asked.Old == nil {
		s.objects.PrepareForCreate(ctx, object)
		problems = s.objects.Validate(ctx, object)
	} else {
		old, _, err := s.decode(asked.Old)
		if err != nil {
			return answer{}, err
		}
		old.SetResourceVersion("1")
		object.SetResourceVersion("1")
		by := updates(s.objects)
		if asked.Status {
			by = s.status
		}
		by.PrepareForUpdate(ctx, object, old)
		problems = by.ValidateUpdate(ctx, object, old)
	}
	for _, problem := range problems {
		errors = append(errors, problem.Error())
	}
	cells, err := s.cells(ctx, object)
	return answer{errors, object.Object, cells}, err
}

// cells is what `kubectl get` shows of an object.
func (s *server) cells(ctx context.Context, object *unstructured.Unstructured) (map[string]any, error) {
	convertor, err := tableconvertor.New(s.columns)
	if err != nil {
		return nil, err
	}
	table, err := convertor.ConvertToTable(ctx, object, nil)
	if err != nil {
		return nil, err
	}
	cells := map[string]any{}
	for number, column := range table.ColumnDefinitions {
		cells[column.Name] = table.Rows[0].Cells[number]
	}
	return cells, nil
}
